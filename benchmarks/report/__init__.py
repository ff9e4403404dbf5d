"""Result files, and what is made of them: terminal tables, the page, README's figures."""
