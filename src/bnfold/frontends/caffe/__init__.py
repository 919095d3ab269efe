"""Caffe: a prototxt and a caffemodel, read and written without Caffe."""

from __future__ import annotations

from bnfold.frontends.caffe.fold import fold_files, inspect_files

__all__ = ["fold_files", "inspect_files"]
