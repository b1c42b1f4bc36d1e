"""The alignment engine (arXiv 2602.00508, data for stage 2): videos -> shots -> clips -> Documents of two pictures.

reading   the videos of a folder; each is read in a child process (child): frames, shots and clips (shots)
engine    one video through the rules of `pairs`, and the change from first to last frame in words
"""
