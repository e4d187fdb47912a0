"""The course's drawings: one idea each, in one style, made by code.

    python -m drawings            # writes notebooks/drawings/*.svg

``sheet`` is the pen and the paper; the other modules hold the drawings.  What is a
result in a drawing (a target, a loss, an advantage) is computed here by the library.
"""
