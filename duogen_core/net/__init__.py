"""HTTP: to servers that the user names, and for the data engines to the web, for those who ask for it (--fetch).

    client    one request: the host is resolved once, its addresses checked, limits on every wait and on bytes;
              `ask_server` is one to a server that the user names, and what goes wrong is a sentence
    links     addresses as pages write them: made absolute, and refused when they lead where no page may lead
    crawl     many addresses, politely: robots.txt, redirects, one request to a host at a time with a pause
    archive   what came back -> a WARC file and a log, continued after a kill

What was fetched is read from the WARC file like any other crawl, so a run after it is the same every time.
"""
