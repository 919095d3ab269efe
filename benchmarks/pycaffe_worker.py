"""Runs one net in a real Caffe: `pycaffe_worker.py NET.prototxt NET.caffemodel IN.npz OUT.npz`.

It needs pycaffe and NumPy and nothing of bnfold, and is a program of its own because a failed
check inside Caffe ends the process. IN.npz has the net's inputs by blob name, OUT.npz gets every
blob that the net holds when it has run: a blob that layers write in place holds the last value.
NET.caffemodel may be `-` for a net without weights.
"""

from __future__ import annotations

import sys

import numpy as np


def main(prototxt: str, weights: str, inputs: str, outputs: str) -> None:
    """See above."""
    import caffe

    caffe.set_mode_cpu()
    arguments = () if weights == "-" else (weights,)
    net = caffe.Net(prototxt, *arguments, caffe.TEST)
    with np.load(inputs) as given:
        for name in given.files:
            net.blobs[name].reshape(*given[name].shape)
            net.blobs[name].data[...] = given[name]
    net.reshape()
    net.forward()
    np.savez(outputs, **{name: np.array(blob.data) for name, blob in net.blobs.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
