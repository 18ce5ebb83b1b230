

   # comment
	
FROM busybox

   RUN echo a > /f
	ENV A=b
