"""What a run came to: a table for the terminal and one self-contained HTML page, drawn from plain records."""
