# Sourced by the recipes: into the repository, a virtual environment in .venv (or the active one),
# the packages of requirements.txt. INSTALL=no: what is there will do.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -f .venv/bin/activate ] || [ "${INSTALL:-yes}" = no ] ||
        "${PYTHON:-python3}" -m venv --clear .venv
    [ ! -f .venv/bin/activate ] || . .venv/bin/activate
fi
if [ "${INSTALL:-yes}" = no ]; then return; fi
echo "installing what requirements.txt names (the first time takes minutes)"
python -m pip install --quiet --disable-pip-version-check -r requirements.txt
