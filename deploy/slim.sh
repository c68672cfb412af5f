#!/bin/sh
# Takes out of an environment what no worker loads: sh slim.sh SITE_PACKAGES. 60 MB in all; sizes as installed, with byte code.
set -eu
cd "$1"
# Builds the project, and is not needed to run it (requirements/build.in).
rm -rf hatchling editables pathspec trove_classifiers
# Tests of numpy and others, its Fortran tools and type stubs.
find . -type d -name tests -prune -exec rm -rf {} +
find . -name '*.pyi' -delete
rm -rf numpy/f2py numpy/distutils
# Makes, converts and profiles models; a session only runs them.
rm -rf onnxruntime/transformers onnxruntime/tools onnxruntime/quantization onnxruntime/datasets
# Classifiers of faces and such.
rm -f cv2/data/*.xml
