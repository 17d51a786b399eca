#!/usr/bin/env bash
# Installs the zoo on a TPU VM, or anywhere the TPU's build of TensorFlow is to be tried:
#
#   PYTHON=python3.11 bash launch/install_tpu.sh [FOLDER] [EXTRAS]
#
# FOLDER is .venv-tpu and PYTHON python3, if nothing is said; Python is 3.11, 3.12 or 3.13.
#
# tensorflow-tpu 2.20.0 is the last release. It takes the place of the package `tensorflow`, which
# others (tensorflow-text, keras-hub) ask for by that name and pip would lay over it. So an empty
# package of that name and version comes first, which requires tensorflow-tpu. Newer builds of
# libtpu (0.0.40 for one) lack what this release calls, and `import tensorflow` aborts with them.
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
description = "Stands for tensorflow-tpu"
dependencies = ["tensorflow-tpu==2.20.0", "libtpu==0.0.21"]
[tool.setuptools]
packages = []
END
"$folder/bin/python" -m pip install --quiet --upgrade pip
"$folder/bin/python" -m pip install --quiet --no-compile "$made"
# The last releases of these for TensorFlow 2.20; --constraint keeps pip from newer ones.
cat > "$made/constraints.txt" <<END
tensorflow==2.20.0
tensorflow-text==2.20.1
tf-keras==2.20.1
END
"$folder/bin/python" -m pip install --quiet --no-compile --constraint "$made/constraints.txt" \
  --editable ".$extras"
# Off a TPU VM libtpu would ask the cloud's metadata server for minutes.
[ -e /dev/accel0 ] || [ -e /dev/vfio/0 ] || export TPU_SKIP_MDS_QUERY=1
"$folder/bin/python" - <<'END'
import keras, tensorflow as tf
print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, "
      f"{len(tf.config.list_physical_devices('TPU'))} TPU core(s) seen")
END
echo "source $folder/bin/activate"
