#!/usr/bin/env bash
# Copyright 2026 The glip_hf authors. MIT licence.
# A virtual environment that sees another's packages behind its own: scripts/layer.sh PYTHON FOLDER, with the
# interpreter of the other one. What is installed into FOLDER comes first and changes nothing there.
set -euo pipefail
python=$1 folder=$2
"$python" -m venv "$folder"
"$python" -c "import sysconfig; print('import site; site.addsitedir(' + repr(sysconfig.get_path('purelib')) + ')')" \
    >"$(echo "$folder"/lib/python3*/site-packages)/behind.pth"
