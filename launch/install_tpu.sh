#!/usr/bin/env bash
# Installs the zoo with TensorFlow for TPUs, on a TPU VM or any other machine:
#
#   PYTHON=python3.11 bash launch/install_tpu.sh [FOLDER] [EXTRAS]
#
# Defaults: FOLDER is .venv-tpu, PYTHON is python3. Python must be 3.11, 3.12 or 3.13.
#
# tensorflow-tpu 2.20.0 is the last release. It replaces the package `tensorflow`, which other
# packages (tensorflow-text, keras-hub) require, so pip would overwrite its files. This script first
# installs an empty package with the name and version of `tensorflow`, which requires tensorflow-tpu.
# Newer builds of libtpu, such as 0.0.40, lack functions of this release: `import tensorflow` aborts.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.venv-tpu}
extras=${2:+[$2]}

"${PYTHON:-python3}" -m venv "$folder"
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
cat > "$made/pyproject.toml" <<END
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"
[project]
name = "tensorflow"
version = "2.20.0"
description = "Placeholder that requires tensorflow-tpu"
dependencies = ["tensorflow-tpu==2.20.0", "libtpu==0.0.21"]
[tool.setuptools]
packages = []
END
"$folder/bin/python" -m pip install --quiet --upgrade pip
"$folder/bin/python" -m pip install --quiet --no-compile "$made"
# Last releases for TensorFlow 2.20; --constraint prevents newer versions.
cat > "$made/constraints.txt" <<END
tensorflow==2.20.0
tensorflow-text==2.20.1
tf-keras==2.20.1
END
"$folder/bin/python" -m pip install --quiet --no-compile --constraint "$made/constraints.txt" \
  --editable ".$extras"
# On other machines libtpu would query the metadata server of the cloud for minutes.
[ -e /dev/accel0 ] || [ -e /dev/vfio/0 ] || export TPU_SKIP_MDS_QUERY=1
"$folder/bin/python" - <<'END'
import keras, tensorflow as tf
print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, "
      f"{len(tf.config.list_physical_devices('TPU'))} TPU core(s)")
END
echo "source $folder/bin/activate"
