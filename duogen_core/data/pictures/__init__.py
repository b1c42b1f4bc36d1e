"""Images of strangers, for the data engines: decoded, classed, compared. Begin at decoding.py.

decoding.py       bytes -> pixels in a child process with limits (decoder_child.py), since a decoder may crash or hang
classing.py       photograph, screenshot or document page; QR codes; by a model of the user, what is not safe for work
duplicates.py     whether two images show the same, whatever their size, frame or compression

Rules and thresholds are the engines' own: data/web/pictures.py, data/pairs/rules.py.
"""
