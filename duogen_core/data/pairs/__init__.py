"""Pairs of pictures, one made from the other: what the video engine and the converters of editing sets have in common.

values and rules of a pair · its Document · a run cut into shards that is gone on with · its yield · its report
"""
