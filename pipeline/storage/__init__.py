"""Where bytes lie: local folders and object stores, and the files of one version of a release."""
