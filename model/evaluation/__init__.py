"""The scoreboard: metrics, benchmark readers, scoring."""
