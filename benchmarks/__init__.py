"""Measurements of bnfold on public networks, each against its peers. Run from the repository root.

python -m benchmarks.coverage     which BatchNorms go, on 150 networks and more
python -m benchmarks.fold_time    how long folding takes, and how much memory
python -m benchmarks.latency      how much faster the folded network runs
"""
