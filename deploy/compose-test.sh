#!/usr/bin/env bash
# Run docker-compose.yml for real: build, train on MNIST over the compose network, check the client's exit code and table,
# take everything down. Where no container engine answers, say so and do nothing.
#
# Read from the environment: BASE, TORCH_INDEX, STEPS, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL (see docker-compose.yml).
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv/bin/python
[ -x "$python" ] || python=python3
deadline=${COMPOSE_TEST_DEADLINE:-1500}  # seconds for build and run together

if ! timeout 20 docker info >/dev/null 2>&1; then
  echo "compose-test: NOT RUN: no container engine answers here (docker info failed)"
  exit 0
fi
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
elif command -v docker-compose >/dev/null; then
  compose=(docker-compose)
else
  echo "compose-test: NOT RUN: an engine answers, but neither 'docker compose' nor docker-compose is installed"
  exit 0
fi
# Without the buildx plug-in only the engine's classic builder is there.
docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0

# The wheel of torch that this machine's pip resolves: where that is a CPU wheel, the image gets it and no CUDA.
torch=$(sed -n 's/^torch==/torch==/p' constraints.txt)
if ! compgen -G "deploy/wheels/torch-*.whl" >/dev/null; then
  "$python" -m pip download --quiet --no-deps --dest deploy/wheels "$torch" \
    || echo "compose-test: this machine's pip has no wheel of $torch; the image's own pip will look for one"
fi

# The image's pip reads the same index as this machine's, by default.
: "${PIP_INDEX_URL:=$("$python" -m pip config get global.index-url 2>/dev/null || true)}"
export PIP_INDEX_URL

work=$(mktemp -d)
project="tngd-test-$$"
# Builds share this machine's network, so that its registries, mirrors and proxies are reached as they are from here.
cat > "$work/override.yml" <<'YAML'
services:
  spu: {build: {network: host}}
  train: {build: {network: host}}
YAML
run=("${compose[@]}" --project-name "$project" --file docker-compose.yml --file "$work/override.yml")
# Compose looks for relative paths next to the first file, which is the repository's root.

cleanup() {
  timeout 120 "${run[@]}" down --volumes --timeout 10 >"$work/down.log" 2>&1 || cat "$work/down.log"
  rm -rf "$work"
}
trap cleanup EXIT

echo "compose-test: building, which takes minutes the first time; its log is $work/build.log"
timeout "$deadline" "${run[@]}" build spu >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log"; exit 1; }

echo "compose-test: running"
timeout "$deadline" "${run[@]}" up --no-build --no-color --exit-code-from train 2>&1 | tee "$work/up.log"

# --exit-code-from made the pipe fail unless the client ended with 0; its table is what it is there for.
for wanted in "after .* iterations test loss" "accuracy" "Every iteration, settings and plot"; do
  grep -q -- "$wanted" "$work/up.log" || { echo "compose-test: FAILED: the client never printed '$wanted'"; exit 1; }
done
echo "compose-test: passed: the client trained through the daemon and exited with 0"
