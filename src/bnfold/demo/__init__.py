"""The demo: a small trained network that carries most of the patterns bnfold folds.

    network.py      the network, and its shipped weights
    data.py         the held-out handwritten digits
    train.py        how the weights were made (needs scikit-learn; the demo itself does not)
    compare.py      how far two networks' logits lie apart
    latency.py      which of two networks is faster
    run.py          the demo

Run it with `python -m bnfold.demo`.
"""
