"""A replacement for curl on machines without it: `curl.py [-s] [-X METHOD] [-H HEADER] [-d BODY] URL`.

It prints the body of any response, as curl does.
"""

import argparse
import sys
import urllib.error
import urllib.request


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="body")
    parser.add_argument("url")
    arguments = parser.parse_args()
    headers = dict(header.split(": ", 1) for header in arguments.headers)
    body = arguments.body.encode() if arguments.body else None
    request = urllib.request.Request(arguments.url, body, headers, method=arguments.method)
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        sys.stdout.buffer.write(response.read())


if __name__ == "__main__":
    main()
