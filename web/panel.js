// The panel: a picture with its masks, a switch for each phrase, a threshold. It changes the node only by "use".
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { Scores } from "./scores.js"
import { text } from "./texts.js"

const STEP = 0.01 // of the nodes' own threshold
const GREY = "#808080" // the ground where a node looked at a latent alone

export class Panel {
    constructor() {
        document.head.append(element("link", { rel: "stylesheet", href: new URL("./panel.css", import.meta.url).href }))
        this.build()
        this.off = new Set() // phrases that are switched off, by name: they stay so when the node runs again
        this.loads = 0
    }

    build() {
        this.title = element("strong")
        const close = element("button", { className: "close", textContent: "✕", title: text("close") })
        close.onclick = () => this.close()
        this.header = element("header", {}, this.title, close)
        this.header.onpointerdown = (event) => event.target.closest("button") || this.drag(event)

        this.canvas = element("canvas", { tabIndex: 0, ariaLabel: text("picture") })
        this.canvas.setAttribute("role", "img")
        this.canvas.onpointermove = ({ offsetX, offsetY, target }) => {
            this.read([offsetX / target.clientWidth, offsetY / target.clientHeight])
        }
        this.canvas.onpointerleave = this.canvas.onblur = () => this.read(undefined)
        this.canvas.onkeydown = (event) => this.step(event)
        this.message = element("p", { className: "message" })
        this.message.setAttribute("role", "status")

        this.count = element("span")
        this.pager = element("nav", {},
            element("button", { textContent: "◀", title: text("previous"), onclick: () => this.turn(-1) }),
            this.count,
            element("button", { textContent: "▶", title: text("next"), onclick: () => this.turn(1) }))
        this.list = element("ul")

        this.slider = element("input", { type: "range", min: 0, max: 1, step: STEP, oninput: () => this.draw() })
        this.value = element("output")
        this.button = element("button", { className: "use", onclick: () => this.use() })
        const label = element("label", {}, text("threshold"), this.slider, this.value)
        this.controls = element("footer", {}, label, this.button)

        this.root = element("section", { className: "ldznet-panel", hidden: true },
            this.header, this.message, this.canvas, this.pager, this.list, this.controls)
        this.root.setAttribute("role", "dialog")
        // The page has keys of its own: Delete would delete nodes.
        for (const kind of ["keydown", "keyup", "copy", "paste", "cut"]) {
            this.root.addEventListener(kind, (event) => event.stopPropagation())
        }
        this.root.addEventListener("keydown", (event) => event.key === "Escape" && this.close())
        document.body.append(this.root)
    }

    open(node, views) {
        this.node = node
        this.title.textContent = `${text("title")}: ${node.title}`
        this.root.ariaLabel = this.title.textContent
        this.slider.value = this.widget()?.value ?? 0.5
        this.page = 0
        this.place = undefined
        this.byKeys = false
        this.root.hidden = false
        this.update(node, views)
        this.slider.focus()
    }

    close(node = this.node) {
        if (node !== this.node) return
        this.root.hidden = true
        this.node = this.scores = this.picture = undefined
    }

    // What a node's new run shows, where the panel shows that node.
    update(node, views) {
        if (node !== this.node || this.root.hidden) return
        this.views = views
        this.page = Math.min(this.page, Math.max(0, views.length - 1))
        this.load()
    }

    turn(by) {
        this.page = (this.page + by + this.views.length) % this.views.length
        this.load()
    }

    async load() {
        const view = this.views[this.page]
        const load = ++this.loads
        if (!view) return this.say(text("empty"))
        let files
        try {
            files = await Promise.all([fetched(view.masks), view.image && fetched(view.image)])
        } catch {
            if (load === this.loads) this.say(text("gone"))
            return
        }
        if (load !== this.loads || this.root.hidden) return // a newer one has begun
        const [sheet, picture] = files
        this.scores = new Scores(view, sheet)
        this.picture = picture
        const { width, height } = picture ?? { width: view.size[0], height: view.size[1] }
        Object.assign(this.canvas, { width, height })
        this.rows = view.phrases.map((phrase, i) => this.row(phrase, view.colours[i]))
        this.list.replaceChildren(...this.rows.map((row) => row.item))
        this.count.textContent = text("image", this.page + 1, this.views.length)
        this.pager.hidden = this.views.length < 2
        this.say("")
        this.draw()
    }

    // Show a message in place of a picture, or the picture where there is no message.
    say(message) {
        this.message.textContent = message
        this.message.hidden = !message
        for (const part of [this.canvas, this.list, this.controls]) part.hidden = !!message
        if (message) this.pager.hidden = true
    }

    row(phrase, colour) {
        const box = element("input", { type: "checkbox", checked: !this.off.has(phrase), title: text("show", phrase) })
        box.onchange = () => {
            this.off[box.checked ? "delete" : "add"](phrase)
            this.draw()
        }
        const score = element("output")
        const swatch = element("i")
        swatch.style.background = colour
        const label = element("label", {}, box, swatch, element("span", { textContent: phrase }))
        return { item: element("li", {}, label, score), box, score }
    }

    // Paint the picture and the numbers, in the page's next frame.
    draw() {
        this.frame ??= requestAnimationFrame(() => {
            this.frame = undefined
            if (!this.scores) return
            const on = [...this.rows.keys()].filter((i) => this.rows[i].box.checked)
            const context = this.canvas.getContext("2d")
            const { width, height } = this.canvas
            context.fillStyle = GREY
            context.fillRect(0, 0, width, height)
            if (this.picture) context.drawImage(this.picture, 0, 0, width, height)
            context.drawImage(this.scores.paint(on, this.threshold), 0, 0, width, height)
            if (this.byKeys) this.cross(context, this.place)
            this.value.textContent = this.threshold.toFixed(2)
            this.number()
            this.offer()
        })
    }

    get threshold() {
        return Number(this.slider.value)
    }

    // A cross where the keys read.
    cross(context, [x, y]) {
        const { width, height } = this.canvas
        context.strokeStyle = "#fff"
        context.lineWidth = Math.max(1, width / 256)
        context.globalCompositeOperation = "difference"
        context.beginPath()
        context.moveTo(x * width, 0)
        context.lineTo(x * width, height)
        context.moveTo(0, y * height)
        context.lineTo(width, y * height)
        context.stroke()
        context.globalCompositeOperation = "source-over"
    }

    // Beside each phrase: its score at the place that is read, else the share of the picture that it covers.
    number() {
        const scores = this.place && this.scores.at(...this.place)
        this.rows.forEach((row, i) => {
            const share = scores ? 0 : this.scores.share(i, this.threshold)
            row.score.textContent = scores ? scores[i].toFixed(2) : share ? percent(share) : text("missing")
        })
    }

    // Read the scores at a place in shares of width and height, or nowhere. A place that keys chose gets a cross.
    read(place, byKeys = false) {
        if (!this.scores) return
        const crossed = this.byKeys || byKeys
        Object.assign(this, { place, byKeys })
        if (crossed) this.draw()
        else this.number()
    }

    step(event) {
        const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key]
        if (!move) return
        event.preventDefault()
        const stride = event.shiftKey ? 0.1 : 0.02
        this.read((this.place ?? [0.5, 0.5]).map((at, i) => Math.min(1, Math.max(0, at + stride * move[i]))), true)
    }

    widget() {
        return this.node.widgets?.find((widget) => widget.name === "threshold")
    }

    linked() {
        return this.node.inputs?.some((input) => input.name === "threshold" && input.link != null)
    }

    // Say what "use" would do now.
    offer() {
        const same = Math.abs((this.widget()?.value ?? NaN) - this.threshold) < STEP / 2
        this.button.disabled = this.linked() || same
        this.button.textContent = text(this.linked() ? "linked" : same ? "used" : "use")
    }

    // Write the threshold into the node. What is queued already keeps its own.
    use() {
        const widget = this.widget()
        widget.value = this.threshold
        widget.callback?.(widget.value, app.canvas, this.node)
        app.graph.setDirtyCanvas(true, true)
        this.offer()
    }

    drag(event) {
        const { left, top } = this.root.getBoundingClientRect()
        const move = ({ clientX, clientY }) => {
            const x = Math.min(innerWidth - 60, Math.max(0, left + clientX - event.clientX))
            const y = Math.min(innerHeight - 40, Math.max(0, top + clientY - event.clientY))
            Object.assign(this.root.style, { left: `${x}px`, top: `${y}px`, right: "auto", bottom: "auto" })
        }
        this.header.setPointerCapture(event.pointerId)
        this.header.addEventListener("pointermove", move)
        const drop = () => this.header.removeEventListener("pointermove", move)
        this.header.addEventListener("lostpointercapture", drop, { once: true })
    }
}

function element(name, members = {}, ...children) {
    const made = Object.assign(document.createElement(name), members)
    made.append(...children)
    return made
}

// A file that the node left in ComfyUI's temporary folder, with its values as they were written.
async function fetched(file) {
    const response = await api.fetchApi(`/view?${new URLSearchParams(file)}`)
    if (!response.ok) throw new Error(response.statusText)
    return createImageBitmap(await response.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" })
}

function percent(share) {
    return share < 0.01 ? "< 1 %" : `${Math.round(100 * share)} %`
}
