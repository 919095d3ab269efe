"""Is it faster: measure models against each other, fairly, and say how sure the answer is.

    result    what was measured: rows of times and ratios, as data, table, JSON, chart
    timing    calls in turn, medians, and the interval of a ratio
    settings  what is varied: device, dtype, layout, batch, threads
    run       from two models to a result
    machine   where it was measured
    chart     the ratios as bars
    table     the result as text and for notebooks

Nothing here imports a framework; how a model is called is `runtimes.py` of its frontend.
"""
