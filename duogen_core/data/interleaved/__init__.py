"""Interleaved rows: the Parquet layout of NVIDIA NeMo Curator 1.x, one row for each text and each picture.

    rows        the columns, Document -> rows and rows -> Document
    lists       the same as parallel lists in a tar, as MINT-1T has them and Curator reads and writes them
    references  the bytes of a picture that a row only points to
    writing     documents -> a Parquet file with row groups small enough to be read one by one
    export      any source of documents -> a folder of Parquet files or webdataset tars, sharded and resumable

Reading is a source like any other: `parquet:FILES` (duogen_core.data.sources.parquet).
"""
