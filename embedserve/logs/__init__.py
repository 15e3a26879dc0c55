"""Lines of logs: what was answered to whom, and records as JSON. The room knows no model and no wire."""
