"""One unit from input to commit, its native work in a child process that may die."""
