"""Converters: open sets of edits, in the layouts they are published in, -> Documents.

rows (Parquet, Arrow, JSON) -> a layout's columns -> rules -> user: picture and instruction, assistant: picture
"""
