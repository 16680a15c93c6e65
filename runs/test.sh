#!/usr/bin/env bash
# All tests, offline.   bash runs/test.sh          the default tier, 2 to 4 minutes on 2 cores
#                       bash runs/test.sh --slow   also the slow tier
#                       bash runs/test.sh --cuda   also on a stub of CUDA (NANOVLP_NULLGPU=<folder>)
# NANOVLP_WHISPER (a .pt) and NANOVLP_DATA (a folder of narrated videos) add the tests on real
# speech; without them these are skipped and say so.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
python -m pytest -n 2 --dist=loadgroup -q -rs tests "$@"
