"""The report page: one HTML file that needs nothing else, for who wants to see for themselves.

    data.py      what is known, as one JSON document inside the page
    outcome.py   what became of each BatchNorm, and why the rest stayed
    layout.py    where each op is drawn
    drawing.py   the drawing, as SVG
    proof.py     errors per output and layer, and latency
    render.py    all of it together
    assets/      the template, the style sheet, the script, and the library that zooms

All but the moving is in the markup: without JavaScript the page is complete, if still.
"""
