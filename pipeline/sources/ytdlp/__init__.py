"""The child process that runs yt-dlp, and the guard round it."""
