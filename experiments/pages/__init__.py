"""What the pages say of the records: blocks of Markdown, a module for each page."""
