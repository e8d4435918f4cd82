"""The local web app over runs, `infermesh view`: pages made by the server, and a little script on top of them."""
