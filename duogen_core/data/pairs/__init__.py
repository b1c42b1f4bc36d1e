"""Pairs of pictures, one made from the other: the engines video and editing, and what they have in common.

rules     what is measured of a pair, which pairs stay, and their Documents
report    pairs of a run to look at
"""
