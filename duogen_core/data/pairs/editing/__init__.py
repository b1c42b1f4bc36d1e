"""Open sets of edits, in the layouts they are published in -> Documents.

rows      Parquet, Arrow or JSON
layouts   which columns are the pictures and the instruction
engine    rules -> user: picture and instruction, assistant: picture
"""
