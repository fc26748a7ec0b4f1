#!/usr/bin/env bash
# Copyright 2026 The glip_hf authors. MIT licence.
# Runs the section FiftyOne of docs/tools.md: scripts/fiftyone.sh PYTHON, of an environment with glip_hf, pytest and
# torchvision. FiftyOne's packages go into out/fiftyone, which sees those of PYTHON behind its own.
#
# FiftyOne needs a MongoDB. Its package of that has one inside up to version 0.4.0; later ones download it when they are
# installed. That one is version 5, which FiftyOne takes with FIFTYONE_DATABASE_VALIDATION=false, and wants OpenSSL 1.1,
# which OpenCV's package has.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?"scripts/fiftyone.sh PYTHON, of an environment with torchvision, is missing its argument"}
environment=$PWD/out/fiftyone
"$python" -c "import torchvision, pytest"
rm -rf "$environment"
scripts/layer.sh "$python" "$environment"
packages=$(echo "$environment"/lib/python3*/site-packages)
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r scripts/fiftyone.txt
mkdir -p "$environment/openssl" "$environment/home"
for library in ssl crypto; do
    ln -sf "$(echo "$packages"/opencv_python_headless.libs/lib$library-*.so.1.1*)" "$environment/openssl/lib$library.so.1.1"
done
export HOME="$environment/home" HF_HUB_OFFLINE=1 LD_LIBRARY_PATH="$environment/openssl" OMP_NUM_THREADS=1
export FIFTYONE_DO_NOT_TRACK=true FIFTYONE_DATABASE_VALIDATION=false
"$environment/bin/python" -m pytest -p no:cacheprovider tests/test_tools.py -k fiftyone
