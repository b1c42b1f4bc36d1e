"""The alignment engine (arXiv 2602.00508, data for stage 2): videos -> shots -> clips -> two-picture Documents.

video file -> child process (frames, shots, clips) -> rules of a pair -> a VLM's description -> two-picture Document
"""
