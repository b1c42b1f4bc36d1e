"""Pairs of pictures, one made from the other: what the video engine and the converters of editing sets have in common.

values, rules  what is measured of a pair, and which pairs stay
documents      a pair -> its Document
sharded        a run: planned, cut into shards, gone on with
report         pairs of a run to look at (again: the words of stored ones)
"""
