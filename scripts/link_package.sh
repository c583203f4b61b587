#!/usr/bin/env bash
# Makes the built tree importable from .venv, and `kf` a command there, without copying anything: the extension was
# built into python/sagellm_kernel_fusion/.
set -euo pipefail
cd "$(dirname "$0")/.."

site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "$PWD/python" > "$site/kf_tree.pth"
cat > .venv/bin/kf <<EOF
#!$PWD/.venv/bin/python
import sys
from sagellm_kernel_fusion.cli import main
sys.exit(main())
EOF
chmod +x .venv/bin/kf
