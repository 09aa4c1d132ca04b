"""Anyone's reports: whatever file a model or a data set left, read as ids, generated reports and references.

encoding, delimited, json_tables, tables   bytes → a table, streamed
columns, records, ids                      which column is what; texts and ids as they are meant
references, training                       the other files of an evaluation

`megpt.evaluation.pairs.read_pairs` puts them together.
"""
