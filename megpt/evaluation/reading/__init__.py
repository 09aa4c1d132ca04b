"""Anyone's reports, read: whatever file a model or a data set left, as pairs of generated report and reference.

found = read_predictions("results.csv", columns=ColumnsConfig())
found.pairs, found.said            # what was taken, in one line
"""
