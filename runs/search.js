// The page of --task=search --serve: plays a moment where it stands, and keys. Without it, the
// links still work.
const player = document.querySelector('dialog')
const video = player.querySelector('video')
const notice = player.querySelector('p')
const links = [...document.querySelectorAll('a.play')]
const pictures = links.filter(link => link.querySelector('img'))
const field = document.querySelector('input[name=q]')

function play(link) {
  notice.hidden = true
  video.src = link.href
  video.onloadedmetadata = () => { video.currentTime = Number(link.dataset.at) }
  player.showModal()
  video.play().catch(() => {})          // a browser may want a second click
}

for (const link of links)
  link.addEventListener('click', event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return      // another tab or window
    event.preventDefault()
    play(link)
  })

video.addEventListener('error', () => { notice.hidden = false })

player.addEventListener('close', () => {
  video.pause()
  video.removeAttribute('src')
  video.load()
})

player.addEventListener('click', event => { if (event.target === player) player.close() })

document.addEventListener('keydown', event => {
  if (player.open || event.isComposing) return
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return
  const at = document.activeElement
  if (event.key === '/' && at.tagName !== 'INPUT' && at.tagName !== 'SELECT') {
    event.preventDefault()
    field.select()
  }
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key]
  const here = pictures.indexOf(at)
  const down = at === field && event.key === 'ArrowDown' && pictures.length
  if (!down && !(step && here >= 0)) return
  event.preventDefault()
  pictures[down ? 0 : Math.max(0, Math.min(pictures.length - 1, here + step))].focus()
})
