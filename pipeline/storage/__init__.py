"""Where bytes lie: readers and writers of local folders and object stores, and the files of one version of a release.

`open` takes a location, `base` says what a `Reader` and a `Writer` can do, `retry` repeats requests.
"""
