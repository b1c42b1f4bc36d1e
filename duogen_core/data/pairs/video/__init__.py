"""The alignment engine (arXiv 2602.00508, data for stage 2): videos -> shots -> clips -> two-picture Documents.

inputs        the videos of a folder, and what lies beside them about where they are from
reading       a video in a child process (child): its frames, shots (shots) and clips (clips)
describe      the change between first and last frame in words, by a vision-language model
engine        one video through all of it and the rules of `pairs`; the shards of a run
showing       clips of a finished run once more, for the report
"""
