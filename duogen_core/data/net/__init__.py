"""Fetching from the web, for those who ask for it (`data web --fetch`): politely, from public addresses only.

    network   one GET: the host is resolved once, every address must be public, and that very address is connected to
    robots    robots.txt of a host (RFC 9309)
    fetcher   an address -> what came back: redirects, each checked again; one request to a host at a time, with a pause
    crawl     many addresses, several hosts at once
    archive   what came back -> a WARC file and a log, gone on with after a kill

What was fetched is read from the WARC file like any other crawl, so a run after it is the same every time.
"""
