"""Result files, and what is made of them: tables in the terminal, the page, the README's figures."""
