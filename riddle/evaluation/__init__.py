"""The paper's tables and figures, measured.

    rows.py                      what the tables compare, as data; the paper's numbers (paper.csv)
    runs.py                      a run's settings, its pairs of pictures, the cache of its stages
    setnames.py, facesets.py     sets of faces, by name: photos, encrypted, restored; detections and embeddings in them
    recognition.py               embeddings of faces by several recognisers
    table1.py to table5.py       the numbers of each table
    security.py, keysearch.py    Table S: attacks on what is published, and on the key
    robustness.py                Table R: what files restore that were compressed, resized, cropped or sent
    tables.py                    one record of a number; tables as CSV and for readers
    stages.py                    the command line of all stages, and which of them one process makes (for the Snakefile)
    figures.py, drawing.py       what the figures show, and how they are drawn
    claims.py, report.py         what holds of the paper's claims (claims.csv); all tables on one page

A number comes to table1.csv by facesets (embeddings), table1 (rates), tables (lines) and stages (the file).
"""
