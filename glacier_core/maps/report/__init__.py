"""One HTML page of a map: `page` puts together what the other modules make."""
