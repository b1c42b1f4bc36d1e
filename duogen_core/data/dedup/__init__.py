"""The pass over whole runs for what one page cannot see, as OBELICS has it (arXiv 2306.16527, appendix A.2):

    repeated image addresses, lines that a domain repeats, pages of one address, near-duplicate documents and documents
    with the same set of images.

    samples    a shard's tar -> its samples: JSON, and where the files of its images lie
    text       lines, words, shingles and numbers of a sample, in any script
    features   both readings of a shard: hashes and signatures, a file of arrays for each shard
    pairs      signatures and hashes of all -> which document goes, by which rule, and whose duplicate it is
    engine     all of it as an engine: what stays is written in shards, what goes is logged with its partner
    report     pairs to look at

What is decided depends on the documents alone, not on the order of runs, shards or workers: of two near-duplicates the
kept one is told by a rule (the longest, or the newest), and ties by address and text.

Memory: a few arrays with a number for each document (20 bytes), one band of the signatures at a time (16 bytes for each
document), and hash values of lines and addresses in parts of PART. Signatures and shingles lie in memory-mapped files.
"""
