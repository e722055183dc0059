"""Commands of the student and the scoreboard, one module each, loaded when called."""
