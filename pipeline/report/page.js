// One set of controls for the two videos of a clip; the first leads, the second is kept on its frame.
// Without scripts each video keeps its own controls.
"use strict";
for (const clip of document.querySelectorAll(".clip")) {
  const videos = [...clip.querySelectorAll("video")];
  const [first, ...others] = videos;
  const rate = Number(clip.dataset.rate), frames = Number(clip.dataset.frames);
  const add = (parent, name, properties) =>
    parent.appendChild(Object.assign(document.createElement(name), properties));
  const player = document.createElement("div");
  player.className = "player";
  player.setAttribute("role", "group");
  player.setAttribute("aria-label", "Player");
  const play = add(player, "button", { type: "button", textContent: "▶" });
  const back = add(player, "button", { type: "button", textContent: "‹" });
  const place = add(player, "input", { type: "range", min: 0, max: frames - 1, step: 1, value: 0 });
  const forward = add(player, "button", { type: "button", textContent: "›" });
  const shown = add(player, "output", {});
  back.setAttribute("aria-label", "One frame back");
  forward.setAttribute("aria-label", "One frame forward");
  place.setAttribute("aria-label", "Frame");
  clip.querySelector(".pair").after(player);

  let playing = false, wanted = 0;
  const show = (frame) => {
    place.value = frame;
    shown.textContent = `${frame + 1} / ${frames}`;
    play.textContent = playing ? "⏸" : "▶";
    play.setAttribute("aria-label", playing ? "Pause" : "Play");
  };
  const at = (video) => Math.min(frames - 1, Math.floor(video.currentTime * rate + 0.01));
  const asked = new Map(); // video -> the time it was last sent to
  const settle = (video) => {
    const time = (wanted + 0.5) / rate; // the middle of a frame: no rounding shows its neighbour
    if (playing || video.seeking || asked.get(video) === time) return;
    asked.set(video, time);
    video.currentTime = time;
  };
  const seek = (frame) => {
    wanted = Math.max(0, Math.min(frames - 1, frame));
    for (const video of videos) {
      video.preload = "auto";
      settle(video);
    }
    show(wanted);
  };
  const pause = () => {
    if (!playing) return;
    playing = false;
    for (const video of videos) video.pause();
    seek(at(first));
  };
  const start = async () => {
    for (const other of document.querySelectorAll(".clip")) if (other !== clip) other.dispatchEvent(new Event("pause"));
    playing = true;
    asked.clear();
    show(wanted);
    try {
      await Promise.all(videos.map((video) => video.play()));
      follow();
    } catch {
      playing = false;
      show(wanted);
    }
  };
  const follow = () => {
    if (!playing) return;
    if (first.ended) {
      for (const video of videos) { video.currentTime = 0; video.play().catch(() => {}); }
    } else {
      for (const video of others)
        if (!video.seeking && Math.abs(video.currentTime - first.currentTime) > 0.5 / rate) video.currentTime = first.currentTime;
    }
    wanted = at(first);
    show(wanted);
    requestAnimationFrame(follow);
  };
  for (const video of videos) {
    video.removeAttribute("controls");
    video.addEventListener("seeked", () => settle(video)); // one seek at a time: the latest wish wins
    video.addEventListener("click", () => (playing ? pause() : start()));
  }
  clip.addEventListener("pause", pause);
  play.addEventListener("click", () => (playing ? pause() : start()));
  back.addEventListener("click", () => { pause(); seek(wanted - 1); });
  forward.addEventListener("click", () => { pause(); seek(wanted + 1); });
  place.addEventListener("input", () => { pause(); seek(Number(place.value)); });
  show(0);
}
