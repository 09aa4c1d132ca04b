"""A PACS as source and as destination: the extension `megpt[pacs]`, by the same entry points as anyone's package.

    megpt prepare source=dicomweb://pacs:8042/dicom-web output=/data/studies        # source.py, films.py
    megpt send predictions=/data/reports to=dicomweb://pacs:8042/dicom-web          # send.py, report.py

Commands, what is sent and what is never kept: docs/pacs.md. How such a package is made: docs/extending.md.
"""
