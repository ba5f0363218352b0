#!/usr/bin/env bash
# CuPy on an emulated card, for machines without one: an environment in which CuPy itself
# runs, its kernels compiled for the host.
#
#   tests/emulated_card/make.sh FOLDER [version of CuPy]     about a minute
#   FOLDER/python -m pytest -m "gpu and not slow"            the tests that need a GPU
#
# It needs g++ on x86-64 and the network. All of CuPy is its released wheel but for two
# modules: the one that holds a copy of CUDA's runtime, and the one that holds kernels of
# Thrust, are compiled from CuPy's sources against this folder's files. CuPy finds the
# others by their names, as it would find CUDA.
set -euo pipefail
source=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
version=${2:-14.2.0}

python3 -m venv "$folder/venv"
bin=$folder/venv/bin
"$bin/pip" install --quiet "cupy-cuda13x==$version" "nvidia-cuda-runtime==13.0.*" \
    "nvidia-cuda-crt==13.0.*" cython setuptools -e "$source/../..[test]"
(
    cd "$folder"
    export CUPY_INSTALL_USE_STUB=1
    "$bin/pip" download --quiet --no-deps --no-binary cupy "cupy==$version"
    tar xzf "cupy-$version.tar.gz"
)
cupy=$folder/cupy-$version
site=$("$bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
suffix=$("$bin/python" -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
cuda=$site/nvidia/cu13/include
blas=$(ls "$site"/numpy.libs/libscipy_openblas64_*.so | head -n 1)

echo "-- two modules of CuPy, from Cython to C++"
(cd "$cupy" && "$bin/python" - <<'PYTHON'
import Cython
from Cython.Build import cythonize
from setuptools import Extension

constants = {
    "CUPY_USE_CUDA_PYTHON": False,
    "CUPY_CYTHON_VERSION": Cython.__version__,
    "CUPY_CUDA_VERSION": 13000,
    "CUPY_HIP_VERSION": 0,
}
modules = [
    Extension(name, [name.replace(".", "/") + ".pyx"], language="c++")
    for name in ("cupy_backends.cuda.api.runtime", "cupy.cuda.thrust")
]
directives = {"binding": False, "warn.deprecated.IF": False}
cythonize(
    modules,
    language_level=3,
    compile_time_env=constants,
    quiet=True,
    compiler_directives=directives,
)
PYTHON
)

echo "-- the card"
rm -rf "$folder/cache"
mkdir -p "$folder/lib" "$folder/include/thrust"
echo '#define THRUST_VERSION 0' > "$folder/include/thrust/version.h"
echo 'extern "C" int cudaProfilerStart(), cudaProfilerStop();' \
    > "$folder/include/cuda_profiler_api.h"
build() { g++ -std=c++17 -O2 -fPIC -w -I"$folder/include" -I"$cuda" "$@"; }
build -c "$source/card.cpp" -o "$folder/card.o"
build -c "$source/libraries.cpp" -o "$folder/libraries.o"
python=(-O1 "-DCYTHON_EXTERN_C=extern \"C\""
    -I"$("$bin/python" -c "import sysconfig; print(sysconfig.get_path('include'))")"
    -I"$("$bin/python" -c "import numpy; print(numpy.get_include())")")
api=$cupy/cupy_backends/cuda/api
build "${python[@]}" -c -I"$api" "$api/runtime.cpp" -o "$folder/runtime.o"
names() {
    nm "$1" --undefined-only "${@:2}" |
        grep -oE ' (cuda|cublas|cusolver|cusparse)[A-Za-z0-9_]*' | tr -d ' '
}
{
    names -g "$folder/runtime.o"
    names -D "$site"/cupy_backends/cuda/libs/{cublas,cusolver,cusparse}"$suffix"
} | sort -u > "$folder/wanted"
nm -g --defined-only "$folder/card.o" "$folder/libraries.o" |
    awk 'NF == 3 { print $3 }' | sort -u > "$folder/there"
{
    echo '#include <stdio.h>'
    comm -13 "$folder/there" "$folder/wanted" |
        sed 's/.*/int &() { return fprintf(stderr, "emulated card: & is missing\\n"), 15; }/'
} > "$folder/missing.c"
cat > "$folder/versions" <<'VERSIONS'
libcublas.so.13 { global: cublas*; };
libcusolver.so.12 { global: cusolver*; };
libcusparse.so.12 { global: cusparse*; };
card { global: cu[A-Z]*; cuda*; nvrtc*; emulated_card; emulated_counters; local: *; };
VERSIONS
gcc -c -fPIC "$folder/missing.c" -o "$folder/missing.o"
card=$folder/lib/libemulated.so
build -shared "$folder"/{card,libraries,missing}.o "$blas" \
    -Wl,--version-script="$folder/versions" -Wl,-rpath,"$(dirname "$blas")" \
    -ldl -lpthread -o "$card"
for name in libcuda.so.1 libcudart.so.13 libnvrtc.so.13 libcublas.so.13 libcublasLt.so.13 \
    libcusolver.so.12 libcusparse.so.12 libnvJitLink.so.13; do
    ln -sf libemulated.so "$folder/lib/$name"
done
build -shared "$folder/runtime.o" "$card" -Wl,-rpath,"$folder/lib" \
    -o "$site/cupy_backends/cuda/api/runtime$suffix"
build "${python[@]}" -shared -I"$cupy/cupy/cuda" "$cupy/cupy/cuda/thrust.cpp" \
    "$source/sorting.cpp" -o "$site/cupy/cuda/thrust$suffix"

# Accelerators are kernels of CUB, which g++ cannot compile; without them CuPy takes its own.
cat > "$folder/python" <<PYTHON
#!/usr/bin/env bash
export LD_LIBRARY_PATH=$folder/lib CUPY_CACHE_DIR=$folder/cache CUPY_ACCELERATORS=
export EMULATED_DEVICES=\${EMULATED_DEVICES:-2}
exec "$bin/python" "\$@"
PYTHON
chmod +x "$folder/python"

echo "-- what every kernel includes, compiled in advance"
cp "$source"/{card,kernel}.h "$folder/lib"
ln -sfn "$cuda" "$folder/lib/cuda"
includes=$("$folder/python" - <<'PYTHON'
from cupy._core.core import assemble_cupy_compiler_options

print(*[i for i in assemble_cupy_compiler_options(()) if i.startswith("-I")])
PYTHON
)
# shellcheck disable=SC2086
g++ -std=gnu++17 -O1 -mfma -fPIC -w -fpermissive $includes "-I$folder/lib/cuda" \
    -x c++-header "$folder/lib/kernel.h" -o "$folder/lib/kernel.h.gch"
"$folder/python" - <<'PYTHON'
import cupy

assert int(cupy.arange(10).sum()) == 45
print(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())
PYTHON
