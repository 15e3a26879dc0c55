#!/bin/bash
# Serves ${MODEL_BASE_PATH}/${MODEL_NAME}, or the directory of models that an argument names; later arguments override
# earlier ones. `exec`, so that the server itself gets the container's SIGTERM and drains.
set -eu
case "${1-}" in
    tune | verify | live | install-command) exec python -m embedserve "$@" ;;
esac
ports=(--port=8500 --rest_api_port=8501)
for argument in "$@"; do
    case "$argument" in
        -*) ;;
        *) exec python -m embedserve "${ports[@]}" "$@" ;;
    esac
done
exec python -m embedserve "${ports[@]}" \
    --model_name="${MODEL_NAME}" --model_base_path="${MODEL_BASE_PATH}/${MODEL_NAME}" "$@"
