#!/bin/bash
# Serves ${MODEL_BASE_PATH}/${MODEL_NAME}; later arguments override earlier ones. `exec`, so that the server itself gets
# the container's SIGTERM and drains.
set -eu
exec python -m embedserve --port=8500 --rest_api_port=8501 \
    --model_name="${MODEL_NAME}" --model_base_path="${MODEL_BASE_PATH}/${MODEL_NAME}" "$@"
